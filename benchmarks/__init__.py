"""One file a claim, each printing a table with the peers beside us. They measure the library, and nothing imports them."""
