"`python -m tracin_nb` is the command `tracin`."
from tracin_nb.cli import main
main()
