"""The API of the backup server: REST below /api/v1, /healthz, /metrics. The only door to FastAPI,
uvicorn and pydantic, which come with the extra `server`; `tokens` works without them."""
