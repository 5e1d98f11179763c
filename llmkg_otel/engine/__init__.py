"""Knowledge engines: the protocol that the MCP tools speak, and an embedded default."""
