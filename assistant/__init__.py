"""Navigator, the online consumer: a conversation over pins whose pictures were encoded last night.

It reads releases and tables and writes none of them but `shadow_turns`, its own. No picture of a pin is encoded while somebody
waits: the language model sees each pin as a few tokens, projected from the vector that the night has made.
"""
