"""Contract suites for plugins, shipped so that outside packages can run them on their own."""
