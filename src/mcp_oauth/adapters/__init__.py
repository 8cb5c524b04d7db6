"""Our stores inside other programs, whose own login stays what it is. Each file is for one, and imports it late."""
