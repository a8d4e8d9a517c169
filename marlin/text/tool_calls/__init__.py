"""How models write tool calls and thoughts: a scanner, and a file for each family of formats."""
