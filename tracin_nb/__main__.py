"`python -m tracin_nb` is the command `tracin`."
from tracin_nb.app.cli import main
main()
