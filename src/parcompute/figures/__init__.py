"""What runs look like: curves, charts, pages, the report."""
