"""The store over HTTP and MCP, for programs elsewhere, browsers and agents: `thermocline serve`, `thermocline mcp`."""
