"""The HTTP server behind `m2m100 serve`: LibreTranslate's, DeepL's, KServe's and our own API."""
