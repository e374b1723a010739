"""Best-arm identification over (prompt, scale), in pure numpy: no I/O, no clock, no LM.

An algorithm is a generator that yields pulls, is sent observations and returns an `Outcome`; it reads like the paper's
pseudocode and serves live, recorded and simulated runs alike.
"""
