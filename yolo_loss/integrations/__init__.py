"""The loss and the assigner inside other trainers. Nothing here imports a trainer's package before it is used."""
