"""Another site's Steersman as a pool: what is signed between sites, what they tell each other, who may send.

signing.py   keys that two sites share, and what is signed with them
identity.py  whose request is sent on, and that it is taken once
digest.py    what a site offers, as it tells it and as it is read
links.py     what is known of each other site: its word, the way there
"""
