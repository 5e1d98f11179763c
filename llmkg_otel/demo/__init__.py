"""`llmkg-otel demo`: real facts, a real server, real MCP clients, faults on purpose, balanced books."""
