"""Pages for people: dashboard, Swagger, and the OpenAPI document."""
