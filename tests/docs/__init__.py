"""The docs are true: code blocks run, options and paths exist, links lead somewhere."""
