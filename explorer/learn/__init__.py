"""Learning: walkthroughs, a question bank, scoring and class votes as plain data and functions. No gradio, no torch; what needs a run gets its reports."""
