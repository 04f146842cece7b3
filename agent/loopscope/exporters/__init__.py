"""What publishes: the only place, with admin, that knows prometheus_client and opentelemetry."""
