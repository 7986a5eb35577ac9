"""Training data: pictures with captions, from folders, tables, kohya's descriptions and webdataset tars."""
