"""Where grants live."""
