"""The API's data: what requests may say, field by field, and what answers look like. Nothing here does anything."""
