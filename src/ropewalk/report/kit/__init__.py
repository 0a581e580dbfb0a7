"""What all reports are made of: pages, tables, colours, pictures."""
