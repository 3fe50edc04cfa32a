"""What to give `observe`: Prometheus metrics, JSON lines, spans. Each module needs the package that
it is named after, and none is imported unless asked for."""
