"""The page's tabs, one file or folder each, found by folder: TAB = Tab(name, title, build, order). In a folder that is its __init__.py, beside handlers.py."""
