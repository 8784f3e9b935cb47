"""The two forms of a request and its answer: the Open Inference Protocol and rows of JSON."""
