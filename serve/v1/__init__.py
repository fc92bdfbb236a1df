"""The routes for people: typed JSON under ``/v1``."""
