"""What the project ships and how it was made: the demo model, the first results, the page's style; each regenerable by one command."""
