"""Running it for real: workers on one port, under a service manager, with certificates that change."""
