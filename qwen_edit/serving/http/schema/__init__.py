"""What the routes take and answer, as OpenAPI 3.1 says it: data, and the small functions that gather it."""
