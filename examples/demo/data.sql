-- The shop of the demo: three customers with data worth hiding, and some orders, in the tables of ../quickstart/schema.sql.
INSERT INTO app.customers (id, name, email, ssn, card_number, notes) VALUES
    (1, 'Ada Winter',  'ada@example.org',  '531-22-8841', '4539148803436467', 'Prefers mail to phone.'),
    (2, 'Ben Okafor',  'ben@example.org',  '212-09-9923', '5425233430109903', 'Write to ben.private@example.net.'),
    (3, 'Cleo Martin', 'cleo@example.org', '402-77-1350', '4716461583322103', NULL);

INSERT INTO app.orders (id, customer_id, amount_cents, status) VALUES
    (101, 1, 4200, 'delivered'), (102, 2, 1990, 'lost'), (103, 3, 15000, 'paid');

INSERT INTO app.cart_items VALUES (1, 1, 'lamp'), (2, 1, 'desk'), (3, 2, 'chair');

-- What the gate logs in as. Its own rights are wider than the policy, so that the demo shows the gate deciding.
CREATE ROLE shop_agent LOGIN PASSWORD :'password';
GRANT USAGE, CREATE ON SCHEMA app TO shop_agent;
GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA app TO shop_agent;
ALTER TABLE app.cart_items OWNER TO shop_agent;
