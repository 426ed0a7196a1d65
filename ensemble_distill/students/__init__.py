"""What a student is: body, heads, and the module that they make together."""
