"""The admin listener: what the agent knows, over HTTP, off the service's own port and loop."""
