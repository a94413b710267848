"""Memory that requests pass through: staging buffers, and regions that clients share."""
