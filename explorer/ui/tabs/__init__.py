"""The page's tabs, one file each, found by folder: TAB = Tab(name, title, build, order)."""
