"""`python -m standby` is the command line."""

from standby.cli import main

if __name__ == "__main__":
    main()
