"""Networks that the tests run on."""
