"""What people look at: tables, HTML and plots, as functions of plain data; nothing here knows DSPy or runs anything."""
