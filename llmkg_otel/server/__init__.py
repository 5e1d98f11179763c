"""What talks to the outside: the MCP server and the operators' HTTP port."""
