"""The prompt sets of the tasks, in our own words: terse ones, personas, steps, checklists, definitions, self-checks."""
