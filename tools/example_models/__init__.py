"""How the large files of the example models are made. `model_repo/materialize.py` says which there are."""
