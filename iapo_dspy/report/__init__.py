"""Tables, HTML and plots for people, as functions of plain data; nothing here knows DSPy or runs anything."""
