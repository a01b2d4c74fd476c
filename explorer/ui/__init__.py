"""The page. Gradio lives here and nowhere else; it lays out controls derived from the methods and forwards events."""
