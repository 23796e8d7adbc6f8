"""`python -m gateway` is `puna-gateway`."""

from gateway.serve import main

if __name__ == "__main__":
    main()
