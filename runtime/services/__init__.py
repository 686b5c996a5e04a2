"""A detector as a service: what every protocol shares is here, each protocol has its package."""
