"""A bounded interpreter of the chat-template language; marlin/text/chat_template.py is its door."""
