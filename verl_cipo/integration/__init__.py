"""Every import of verl stands in this folder, one module a hook."""
