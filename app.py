"""The app as a Space or a script starts it; `erase app` is the same with options."""

from erase.app import main

if __name__ == "__main__":
    main()
