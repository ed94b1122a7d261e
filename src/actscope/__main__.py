"""``python -m actscope`` is the command ``actscope``."""

from actscope.cli.main import main

if __name__ == "__main__":
    main()
