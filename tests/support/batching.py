"""Files and batch jobs of the loopback server, as OpenAI's API has them. Everything is counted."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlsplit

Line = Callable[[dict[str, Any], int], Any]


@dataclass
class BatchFaults:
    """Faults of batch jobs.

    Attributes:
        polls: Looks at a job until it ends.
        ends: Status at the end of the first job, the second, ...; the others complete.
        line: (body, number of the job) -> what happens to a request: None, a status, "missing" from the output,
            "garbled", or any fault of `Loopback` ("fewer", "garbage").
        answered: Share of the requests that a job has answered when it expires or is cancelled.
        lost: Jobs that are made although the connection breaks before their id is sent.
        hidden: Searches in which jobs are not listed yet.
        refuse: Statuses of the first submissions, which make no job.
        looks: Statuses of the first looks.
        cut: Fetches of an output file that end in the middle of the last line.
        missing: No such endpoints.
        slow: Seconds that a submission takes before and after the job is made.
        page: Jobs on a page of the list.
    """

    polls: int = 1
    ends: list[str] = field(default_factory=list)
    line: Line = lambda body, job: None
    answered: float = 0.5
    lost: int = 0
    hidden: int = 0
    refuse: list[int] = field(default_factory=list)
    looks: list[int] = field(default_factory=list)
    cut: int = 0
    missing: bool = False
    slow: float = 0.0
    page: int = 100


class BatchJobs:
    """The endpoints.

    Args:
        answer: (request body, fault) -> status and response body; counts what is paid for.
        faults: What goes wrong.
    """

    def __init__(self, answer: Callable[[dict[str, Any], Any], tuple[int, dict[str, Any]]], faults: BatchFaults):
        self.faults = faults
        self.files: dict[str, bytes] = {}
        self.names: list[str] = []
        self.jobs: list[dict[str, Any]] = []
        self.calls: list[tuple[str, str]] = []
        self.headers: list[Mapping[str, str]] = []  # names in lower case
        self._answer = answer
        self._looks: dict[str, int] = {}
        self._lock = threading.RLock()

    @property
    def custom_ids(self) -> list[list[str]]:
        """The ids of the requests of each job."""
        return [[line["custom_id"] for line in self.lines(job)] for job in self.jobs]

    def lines(self, job: dict[str, Any]) -> list[dict[str, Any]]:
        """The requests of a job."""
        return [json.loads(line) for line in self.files[job["input_file_id"]].splitlines()]

    def handle(self, method: str, path: str, headers: Any, raw: bytes) -> tuple[int | None, bytes]:
        """Answer a request: status and body; no status where the connection breaks."""
        parts = urlsplit(path)
        tail = re.sub(r".*/(files|batches)", r"/\1", parts.path)
        with self._lock:
            self.calls.append((method, tail))
            self.headers.append({k.lower(): v for k, v in headers.items()})
            if self.faults.missing:
                return _error(404, "Not Found")
            if tail == "/files":
                return self._upload(headers, raw)
            if tail.endswith("/content"):
                return self._fetch(tail.split("/")[2])
            if tail == "/batches" and method == "GET":
                return self._list(parse_qs(parts.query))
            if tail == "/batches":
                status, body, after = self._submit(json.loads(raw))
            elif tail.endswith("/cancel"):
                return self._cancel(tail.split("/")[2])
            else:
                return self._look(tail.split("/")[2])
        time.sleep(after)
        return status, body

    def _upload(self, headers: Any, raw: bytes) -> tuple[int, bytes]:
        boundary = re.search("boundary=(.+)", headers["Content-Type"])
        assert boundary is not None
        for part in raw.split(b"--" + boundary[1].strip('"').encode()):
            head, _, content = part.partition(b"\r\n\r\n")
            name = re.search(rb'filename="([^"]+)"', head)
            if name is not None:
                file_id = f"file-{len(self.files)}"
                self.files[file_id] = content.removesuffix(b"\r\n")
                self.names.append(name[1].decode())
                return _json({"id": file_id, "object": "file", "bytes": len(content), "created_at": int(time.time()),
                              "filename": self.names[-1], "purpose": "batch", "status": "processed"})  # fmt: skip
        return _error(400, "no file")

    def _submit(self, body: dict[str, Any]) -> tuple[int | None, bytes, float]:
        if self.faults.refuse:
            return *_error(self.faults.refuse.pop(0), "injected"), 0.0
        time.sleep(self.faults.slow)
        number = len(self.jobs)
        job = {
            "id": f"batch_{number}", "object": "batch", "endpoint": body["endpoint"], "completion_window": "24h",
            "input_file_id": body["input_file_id"], "status": "validating", "created_at": int(time.time()),
            "metadata": body.get("metadata"), "output_file_id": None, "error_file_id": None, "errors": None,
            "request_counts": {"total": 0, "completed": 0, "failed": 0},
        }  # fmt: skip
        self.jobs.append(job)
        if self.faults.lost:
            self.faults.lost -= 1
            return None, b"", self.faults.slow
        return *_json(job), self.faults.slow

    def _find(self, job: str) -> dict[str, Any] | None:
        return next((j for j in self.jobs if j["id"] == job), None)

    def _look(self, name: str) -> tuple[int, bytes]:
        if self.faults.looks:
            return _error(self.faults.looks.pop(0), "injected")
        job = self._find(name)
        if job is None:
            return _error(404, f"No batch {name}")
        self._looks[name] = self._looks.get(name, 0) + 1
        if job["status"] in ("validating", "in_progress"):
            job["status"] = "in_progress"
            if self._looks[name] > self.faults.polls:
                number = int(name.split("_")[1])
                self._end(job, self.faults.ends[number] if number < len(self.faults.ends) else "completed")
        return _json(job)

    def _cancel(self, name: str) -> tuple[int, bytes]:
        job = self._find(name)
        if job is None:
            return _error(404, f"No batch {name}")
        if job["status"] not in ("validating", "in_progress"):
            return _error(409, f"Cannot cancel a batch with status {job['status']}")
        self._end(job, "cancelled")
        return _json({**job, "status": "cancelling"})

    def _end(self, job: dict[str, Any], status: str) -> None:
        """Answer a job's requests and write its files."""
        job["status"] = status
        if status == "failed":
            job["errors"] = {"object": "list", "data": [{"code": "invalid_model", "message": "injected", "line": 1}]}
            return
        number = int(job["id"].split("_")[1])
        lines = self.lines(job)
        done = len(lines) if status == "completed" else int(self.faults.answered * len(lines))
        good: list[Any] = []
        bad: list[Any] = []
        for i, line in enumerate(lines):
            out = {"id": f"r{i}", "custom_id": line["custom_id"], "response": None, "error": None}
            if i >= done:
                bad.append({**out, "error": {"code": f"batch_{status}", "message": "This request was not executed."}})
                continue
            fault = self.faults.line(line["body"], number)
            code, answer = self._answer(line["body"], None if fault in ("missing", "garbled") else fault)
            out["response"] = {"status_code": code, "request_id": "x", "body": answer}
            if fault == "garbled":
                out["response"]["body"] = {"choices": "none"}
            if fault != "missing":
                (good if code == 200 else bad).append(out)
        for key, some in (("output_file_id", good), ("error_file_id", bad)):
            if some:
                job[key] = f"file-{len(self.files)}"
                # Providers answer in any order.
                self.files[job[key]] = b"".join(json.dumps(o).encode() + b"\n" for o in reversed(some))
        job["request_counts"] = {"total": len(lines), "completed": len(good), "failed": len(bad)}

    def _list(self, query: dict[str, list[str]]) -> tuple[int, bytes]:
        if self.faults.hidden:
            self.faults.hidden -= 1
            return _json({"object": "list", "data": [], "has_more": False})
        newest = self.jobs[::-1]
        after = query.get("after", [None])[0]
        start = next((i + 1 for i, j in enumerate(newest) if j["id"] == after), 0)
        page = newest[start : start + self.faults.page]
        more = start + len(page) < len(newest)
        return _json({"object": "list", "data": page, "has_more": more})

    def _fetch(self, file_id: str) -> tuple[int, bytes]:
        content = self.files[file_id]
        if self.faults.cut and not any(j["error_file_id"] == file_id for j in self.jobs):
            self.faults.cut -= 1
            content = content[: -len(content.splitlines()[-1]) // 2]
        return 200, content


def _json(value: Any) -> tuple[int, bytes]:
    return 200, json.dumps(value).encode()


def _error(status: int, message: str) -> tuple[int, bytes]:
    return status, json.dumps({"error": {"message": message, "type": "injected", "code": None}}).encode()
