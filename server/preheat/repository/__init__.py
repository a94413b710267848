"""The model repository: what is on disk and what it asks for. Loads nothing, runs no model.

``scan`` finds models and versions, ``configuration`` reads config.pbtxt, ``fields`` says which of its fields are
honoured, ``completion`` adds what the artifact says of itself.
"""
