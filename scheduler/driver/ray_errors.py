"""What Ray says about deaths, for people."""


def first_line(error: BaseException) -> str:
    """Return the first line of what Ray says, without its traceback."""
    text = str(error).strip() or type(error).__name__
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[0].rstrip(".")
