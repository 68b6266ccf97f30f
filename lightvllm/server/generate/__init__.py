"""The two endpoints that generate: /v1/completions and /v1/chat/completions."""
